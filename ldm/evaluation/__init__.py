"""How good generated pictures are: Fréchet distances and the accuracy of classifiers trained on them."""
