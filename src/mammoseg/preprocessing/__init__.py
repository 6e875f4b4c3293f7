"""From native pixels to what the networks take: breast region, intensity, resize, crops, augmentation."""
