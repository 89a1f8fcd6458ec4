"""The graphs of a bundle, composed from blocks: decoder, vision tower, projector, compressor."""
