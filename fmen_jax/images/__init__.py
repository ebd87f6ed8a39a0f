"""Images: reading, writing, resizing, and rearranging pixels."""
