"""Ray and Ray Tune: connection, capacity, searcher, trainable and tuner."""
