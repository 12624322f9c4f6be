"""Long series of numbers that belong to a class: images pixel by pixel, sound sample by sample."""
