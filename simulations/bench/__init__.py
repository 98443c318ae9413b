"""Speed of the fused engine against plain PEFT and against Flower's own simulation: ``python -m simulations bench``."""
