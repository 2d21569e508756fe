"""What a policy author imports: observations of several cameras, caches over tokens."""
