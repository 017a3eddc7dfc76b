from libs.kernel.units import NS_PER_MS, NS_PER_S
from libs.policy.liveness import EchoLiveness, LivenessOptions

BEAT_NS = 200 * NS_PER_MS


def a_liveness() -> EchoLiveness:
    return EchoLiveness(LivenessOptions())


def hear_echoes(liveness: EchoLiveness, count: int, *, from_ns: int = 0) -> list[str]:
    """Hear this many own echoes, one per beat, and return who died at them."""
    dead: list[str] = []
    for beat in range(1, count + 1):
        dead += liveness.observe_echo(now_ns=from_ns + beat * BEAT_NS)
    return dead


def test_a_peer_that_misses_ten_echoes_is_dead_and_one_that_misses_nine_is_not() -> None:
    liveness = a_liveness()
    liveness.observe_peer("w1")
    assert hear_echoes(liveness, 9) == []
    assert liveness.is_alive("w1")
    assert liveness.observe_echo(now_ns=10 * BEAT_NS) == ["w1"]
    assert not liveness.is_alive("w1")


def test_a_report_starts_the_count_anew() -> None:
    liveness = a_liveness()
    liveness.observe_peer("w1")
    hear_echoes(liveness, 9)
    assert not liveness.observe_peer("w1")
    assert hear_echoes(liveness, 9, from_ns=9 * BEAT_NS) == []


def test_without_an_own_echo_nobody_dies_however_long_it_takes() -> None:
    liveness = a_liveness()
    liveness.observe_peer("w1")
    liveness.observe_echo(now_ns=0)
    # The broker is away for 8 s: no echo, hence no count; the first echo after it only forgives.
    assert liveness.observe_echo(now_ns=8 * NS_PER_S) == []
    assert hear_echoes(liveness, 24, from_ns=8 * NS_PER_S) == []
    assert liveness.is_alive("w1")


def test_the_allowance_after_an_outage_ends() -> None:
    liveness = a_liveness()
    liveness.observe_peer("w1")
    liveness.observe_echo(now_ns=0)
    liveness.observe_echo(now_ns=8 * NS_PER_S)
    assert hear_echoes(liveness, 40, from_ns=8 * NS_PER_S) == ["w1"]


def test_an_unreachable_peer_is_dead_after_two_missed_echoes() -> None:
    liveness = a_liveness()
    liveness.observe_peer("w1")
    liveness.observe_peer("w2")
    liveness.observe_unreachable("w1")
    assert hear_echoes(liveness, 2) == ["w1"]
    assert liveness.is_alive("w2")


def test_a_report_clears_the_suspicion_of_being_unreachable() -> None:
    liveness = a_liveness()
    liveness.observe_peer("w1")
    liveness.observe_unreachable("w1")
    liveness.observe_peer("w1")
    assert hear_echoes(liveness, 9) == []


def test_a_peer_nobody_heard_of_cannot_become_unreachable() -> None:
    liveness = a_liveness()
    liveness.observe_unreachable("ghost")
    liveness.observe_peer("ghost")
    assert hear_echoes(liveness, 9) == []


def test_suspects_are_named_once_at_the_second_missed_echo() -> None:
    liveness = a_liveness()
    liveness.observe_peer("w1")
    seen = []
    for beat in range(1, 6):
        liveness.observe_echo(now_ns=beat * BEAT_NS)
        seen.append(liveness.suspects())
    assert seen == [[], ["w1"], [], [], []]
