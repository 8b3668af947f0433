"""The demo's result: tables for people, or one JSON document."""

from __future__ import annotations

from typing import Any

from aios_node.node.cli.output import human_bytes, print_json, print_table


def show(result: dict[str, Any], *, as_json: bool) -> None:
    """Print what the demo found."""
    if as_json:
        print_json(result)
        return
    print()
    _models(result["models"])
    _transfers("Transfers (each received over DoExchange, verified, then activated)", result)
    _search(result["search"])
    _training(result["training"])
    _swap(result["swap"])
    print(f"\nEverything above was measured just now, in {result['seconds']:.0f} s.")


def _models(models: dict[str, Any]) -> None:
    rows = [
        (name, human_bytes(m["bytes"]), f"{m['bytes'] / m['source_bytes']:.1%}", f"{m['cosine']:.4f}")
        for name, m in models.items()
    ]
    print_table("Models made smaller", ["model", "size", "of FP32", "cosine to FP32"], rows, empty="")


def _transfers(title: str, result: dict[str, Any]) -> None:
    rows = [
        (
            one["node"],
            one["peer"],
            one["model"],
            one["mode"],
            human_bytes(one["bytes"]),
            human_bytes(one["full_bytes"]),
            f"{one['full_bytes'] / max(one['bytes'], 1):.1f}x",
            f"{one['changed_bytes'] / max(one['bytes'], 1):.1f}x",
            f"{one['seconds']:.1f}",
            "yes" if one["hash_ok"] else "no",
        )
        for one in (*result["first_sync"], *result["delta_sync"])
    ]
    columns = [
        "node",
        "from",
        "model",
        "mode",
        "on the wire",
        "full size",
        "ratio",
        "changed only",
        "seconds",
        "hash equal",
    ]
    print()
    print_table(title, columns, rows, empty="")


def _search(search: dict[str, Any]) -> None:
    rows = [
        (answer["question"] if index == 0 else "", hit["source"], f"{hit['score']:.3f}", hit["node"])
        for answer in search["answers"]
        for index, hit in enumerate(answer["hits"])
    ]
    print()
    print_table("One question, every node", ["question", "found", "score", "node"], rows, empty="")


def _training(training: dict[str, Any]) -> None:
    rows = [
        (name, f"{scores['recall_at_1']:.3f}", f"{scores['recall_at_10']:.3f}", f"{scores['mrr']:.3f}")
        for name, scores in (
            ("before", training["before"]),
            ("after, documents embedded anew", training["after"]),
            ("after, documents as stored", training["stored"]),
        )
    ]
    print()
    print_table(
        f"Retrieval on {training['questions']} held-out questions (trained and judged in {training['seconds']:.0f} s)",
        ["encoder", "recall@1", "recall@10", "MRR"],
        rows,
        empty="",
    )


def _swap(swap: dict[str, Any]) -> None:
    rows = [
        (
            node,
            s["requests"],
            s["failed"],
            f"{s['slowest_during_swap_ms']:.0f} ms",
            f"{s['slowest_otherwise_ms']:.0f} ms",
        )
        for node, s in swap.items()
    ]
    print()
    print_table(
        "Encode requests while the model was exchanged",
        ["node", "requests", "failed", "slowest around the swap", "slowest otherwise"],
        rows,
        empty="",
    )
