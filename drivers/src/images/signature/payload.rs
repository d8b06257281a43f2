//! What a signature says. Pure.
