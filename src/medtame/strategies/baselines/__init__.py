"""What uses neither the image nor the text side of the encoder. Stands in every table, fills no cell of the matrix."""
