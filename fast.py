"""Shim."""
def accelerate(model): return model
def checkpoint_layers(model): pass
