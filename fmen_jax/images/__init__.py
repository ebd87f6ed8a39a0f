"""Pictures: reading, writing, resizing, and the rearrangements of pixels."""
