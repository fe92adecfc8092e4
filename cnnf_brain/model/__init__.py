"""The model: CNN-F over nn.Sequential, its nets, weights and losses."""
