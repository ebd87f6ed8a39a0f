"""Training of networks on photographs."""
