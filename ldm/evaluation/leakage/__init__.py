"""How much generated images and models reveal about their training images: nearest neighbours and membership."""
