"""Networks: a 3D U-Net and an invertible one, from one configuration, with a model of their memory."""
