//! A Meridian node put together, and the meridian command.
