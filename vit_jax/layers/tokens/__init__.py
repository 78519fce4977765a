"""More tokens than those of the image, or fewer: what happens to them before, in and between the blocks of a ViT."""
