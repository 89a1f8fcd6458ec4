"""What is measured, at the runtime's contracts, and in which order.

sizes    how many rows, tokens and pictures      samples  what was clocked so far
scripts  growths and trees that are asked for    rigs     target and draft, put at any context
rounds   draft calls and verifications           prompts  pictures and prompts
requests whole requests: what the host takes     steering how far their rounds are accepted
memory   resident memory, in processes of its own agreement whether it all adds up to rounds
"""
