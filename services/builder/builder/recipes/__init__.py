"""One module for each way from source to image; `builder.recipe` asks them in order."""
