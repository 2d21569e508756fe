"""What a policy author imports: observations of several cameras, timing, caches over tokens."""
