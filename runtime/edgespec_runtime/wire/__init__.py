"""What a drafting device and a verifying server agree on: messages, prefixes, rounds, refusals."""
