"""Publishing on the Hugging Face hub: weights in a format that others load, and a card that tells what they are."""
