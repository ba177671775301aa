//! Kubernetes, as far as `helm` needs it.

pub(crate) mod api;
pub(crate) mod helm;
