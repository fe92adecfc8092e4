"""The robustness experiments of the paper (Section 4.1, Appendix B) on MNIST and Fashion-MNIST."""
