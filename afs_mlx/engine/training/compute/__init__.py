"""How a batch becomes a loss and its gradients: the forward pass, the head, what is kept of frozen blocks."""
