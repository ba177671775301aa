//! What Kubernetes does to the pods of a Deployment, acted out on processes: probes, endpoints, the end of a pod, the
//! order of a rollout, and the decisions of a `HorizontalPodAutoscaler`.
//!
//! It is equipment, with the properties that lose requests in a real cluster: who forwards connections hears late that
//! a pod is leaving, does not try another one, and scaling down asks nobody. The API server is there for `helm`.

pub(crate) mod api;
pub(crate) mod autoscaler;
pub(crate) mod deployment;
pub(crate) mod helm;
pub(crate) mod pod;
pub(crate) mod service;
