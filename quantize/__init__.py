"""The canonical quantised weights: numpy only, upstream of every target."""
