"""The target elsewhere: a verifier across a network, what is measured of it, and what follows.

link      round trip, queue and compute as measured     outlook   tokens per millisecond, predicted
modes     hybrid, remote-only or local, round by round  routed    where a round is verified
fallback  what takes over when no server answers
"""
