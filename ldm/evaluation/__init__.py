"""How good generated images are: Fréchet distances and the accuracy of classifiers trained on them."""
