"""What feedback does, seen: Figure 9 of Huang et al. (2020) and what is measured of it. ``python -m cnnf_brain.visualize``."""
