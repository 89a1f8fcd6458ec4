"""Tree policies, one module each, behind the contract of ``edgespec.sizing.contract``."""
