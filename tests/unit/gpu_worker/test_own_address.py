"""Where a worker's peers reach it."""

import ipaddress

from services.gpu_worker.planned_setup import address_of


def test_a_given_address_is_taken_as_it_is() -> None:
    assert address_of("10.0.0.7") == "10.0.0.7"


def test_auto_is_an_address_of_this_machine() -> None:
    assert ipaddress.ip_address(address_of("auto"))
