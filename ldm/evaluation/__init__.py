"""Quality of generated images: Fréchet distances and the accuracy of classifiers trained on them."""
