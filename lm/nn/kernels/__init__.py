"""The kernels of recurrent layers, and the choice among them."""
