"""The local web page on which a person looks at contours, corrects them and decides."""
