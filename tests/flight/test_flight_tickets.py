"""Tickets: what they stand for comes back; anything altered, foreign or old is refused."""

from __future__ import annotations

import json

import pyarrow.flight as fl
import pytest
from flight_fakes import FakePorts, Serve
from hypothesis import given
from hypothesis import strategies as st

from aios_node.engine.errors import BadRequest
from aios_node.flight.limits import Limits
from aios_node.flight.tickets import TicketSigner

KEY = b"k" * 32
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3),
    max_leaves=5,
)


@given(st.dictionaries(st.text(max_size=9), json_values, max_size=3))
def test_what_is_signed_opens(content: dict) -> None:
    ticket, _ = TicketSigner(KEY).sign(content, 60)
    assert TicketSigner(KEY).open(ticket) == content


@given(st.binary(max_size=200))
def test_anything_else_does_not(data: bytes) -> None:
    with pytest.raises(BadRequest):
        TicketSigner(KEY).open(data)


@given(st.data())
def test_no_byte_can_be_changed(data: st.DataObject) -> None:
    ticket = bytearray(TicketSigner(KEY).sign({"table": "notes"}, 60)[0])
    place = data.draw(st.integers(0, len(ticket) - 1))
    ticket[place] ^= data.draw(st.integers(1, 255))
    with pytest.raises(BadRequest):
        TicketSigner(KEY).open(bytes(ticket))


def test_expiry_follows_the_clock() -> None:
    now = [1000.0]
    signer = TicketSigner(KEY, now=lambda: now[0])
    ticket, expires = signer.sign({"a": 1}, 60)
    assert expires == 1060
    now[0] = 1060.0
    assert signer.open(ticket) == {"a": 1}
    now[0] = 1060.5
    with pytest.raises(BadRequest, match="expired"):
        signer.open(ticket)


def test_keys_differ_between_processes_unless_given() -> None:
    with pytest.raises(BadRequest, match="not valid here"):
        TicketSigner().open(TicketSigner().sign({}, 60)[0])


@pytest.mark.parametrize("ticket", [b"", b"notes", b"weights/tiny", b'{"table": "notes"}', b"\x80\x04]\x94."])
def test_the_server_refuses_made_up_tickets(serve: Serve, ticket: bytes) -> None:
    with pytest.raises(fl.FlightServerError) as caught:
        serve.client().do_get(fl.Ticket(ticket)).read_all()
    assert json.loads(caught.value.extra_info)["code"] == "bad_request"


def test_the_server_refuses_huge_tickets(serve: Serve) -> None:
    client = serve.client(serve.listener(limits=Limits(command_bytes=1000)))
    with pytest.raises(fl.FlightServerError) as caught:
        client.do_get(fl.Ticket(b"x" * 5000)).read_all()
    assert json.loads(caught.value.extra_info)["code"] == "too_large"


def test_endpoints_say_when_their_ticket_expires(serve: Serve, fakes: FakePorts) -> None:
    signer = TicketSigner(now=lambda: 1_700_000_000.0)
    listener = serve.listener(tickets=signer, limits=Limits(ticket_ttl=90))
    info = serve.client(listener).get_flight_info(fl.FlightDescriptor.for_path("weights", "tiny"))
    assert {e.expiration_time.as_py().timestamp() for e in info.endpoints} == {1_700_000_090.0}


def test_listeners_with_one_signer_redeem_each_others_tickets(serve: Serve) -> None:
    signer = TicketSigner()
    first, second = (serve.client(serve.listener(tickets=signer)) for _ in range(2))
    info = first.get_flight_info(fl.FlightDescriptor.for_path("memory", "notes"))
    assert second.do_get(info.endpoints[0].ticket).read_all().num_rows == 3


def test_a_ticket_to_a_collected_version(serve: Serve, fakes: FakePorts) -> None:
    client = serve.client()
    info = client.get_flight_info(fl.FlightDescriptor.for_path("weights", "tiny"))
    fakes.weights.versions["tiny"] = []
    with pytest.raises(fl.FlightServerError) as caught:
        client.do_get(info.endpoints[0].ticket).read_all()
    assert json.loads(caught.value.extra_info)["code"] == "unknown_version"
