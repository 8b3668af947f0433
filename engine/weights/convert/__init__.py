"""Importers and exporters: Hugging Face folders, safetensors, PyTorch checkpoints, Parquet folders."""
