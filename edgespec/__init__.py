"""edgespec: lossless speculative decoding of vision-language models on edge devices."""

__version__ = "0.1.0"
