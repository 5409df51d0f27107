"""Lesson 07: any nn.Module, two optimizers, custom operators."""
