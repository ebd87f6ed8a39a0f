"""The page that upscales pictures in a browser: its static files, how it is written and served."""
