//! Reading and following container logs in the CRI format, across rotations.
//!
//! A line is `2016-10-06T00:17:09.669794202Z stdout F message` (Kubernetes, "CRI logging format"; `P` marks a part
//! of a line that was longer than the writer's buffer). `nodelet-logger` writes `<attempt>.log` and rotates it to
//! `<attempt>.log.1`, `.2`, … by rename, 1 being the youngest.
