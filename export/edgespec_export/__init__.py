"""Checkpoints to bundles: graphs are built node by node from config.json and safetensors."""
