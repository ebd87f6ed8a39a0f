"""Pictures, and how smaller ones are made of them."""
