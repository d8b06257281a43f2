//! Whatever is on the node, planning and applying leads to what is wanted.

use proptest::prelude::*;

use super::*;

/// Applies a plan to the observation, as the node would come to look after it.
fn apply_to_model(desired: &Desired, observed: &mut Observed, plan: &Plan) {
    for step in &plan.steps {
        match step {
            Step::Ask { id, .. } | Step::Kill { id } => {
                for c in observed.containers.iter_mut().filter(|c| c.id() == id) {
                    c.container.state = exited(143, 0);
                }
            }
            Step::Remove { id } => observed.containers.retain(|c| c.id() != id),
            Step::Teardown { id } => {
                assert!(
                    !observed.containers.iter().any(|c| c.sandbox == id.as_str() && c.is_live()),
                    "torn down alive"
                );
                observed.stale_sandboxes.remove(id);
                if observed.serving.as_ref() == Some(id) {
                    observed.serving = None;
                }
                if *id == desired.sandbox.spec.id {
                    observed.sandbox = None;
                }
            }
            Step::EnsureSandbox => {
                let sandbox = observed.sandbox.get_or_insert(SeenSandbox {
                    complete: true,
                    netns: None,
                    attachments: vec![],
                    ports: vec![],
                });
                sandbox.complete = true;
            }
            Step::Attach { .. } => observed.sandbox.as_mut().unwrap().attachments = vec![attachment()],
            Step::Detach { .. } => observed.sandbox.as_mut().unwrap().attachments.clear(),
            Step::SetPorts | Step::TakePorts { .. } => {
                if matches!(step, Step::TakePorts { .. }) {
                    observed.serving = None;
                }
                assert!(observed.serving.is_none(), "a port with two owners");
                let sandbox = observed.sandbox.as_mut().unwrap();
                sandbox.ports =
                    published_ports(desired, sandbox.attachments.iter()).into_iter().map(|p| (p, true)).collect();
            }
            Step::WriteFiles => observed.outdated_files.clear(),
            Step::Start { container: name, init, attempt, restarts, failures, .. } => {
                assert!(observed.sandbox.as_ref().unwrap().complete, "started outside a sandbox");
                let mut started = container(name, *attempt, running());
                started.init = *init;
                started.restarts = *restarts;
                started.failures = *failures;
                let list = if *init { &desired.init } else { &desired.containers };
                let wish = list.iter().find(|w| w.name == *name).unwrap();
                started.hash.clone_from(&wish.hash);
                started.container.limits = wish.limits.clone();
                assert!(!observed.containers.iter().any(|c| c.id() == started.id()), "an id was used twice");
                observed.containers.push(started);
            }
            Step::Signal { id, content } => {
                for c in observed.containers.iter_mut().filter(|c| c.id() == id) {
                    c.heard = Some(content.clone());
                }
            }
            Step::UpdateLimits { id, limits } => {
                for c in observed.containers.iter_mut().filter(|c| c.id() == id) {
                    c.container.limits = limits.clone();
                }
            }
        }
    }
}

fn any_state() -> impl Strategy<Value = TaskState> {
    prop_oneof![
        Just(TaskState::Absent),
        Just(TaskState::Created { pid: 1 }),
        Just(running()),
        Just(TaskState::Unknown),
        (0u32..3, 0u64..400).prop_map(|(code, ago)| exited(code, ago)),
    ]
}

prop_compose! {
    fn any_container()(
        name in prop_oneof![Just("main"), Just("side"), Just("gone")],
        attempt in 0u32..3,
        state in any_state(),
        old in any::<bool>(),
        hash in prop_oneof![Just("h1"), Just("h0")],
        failures in 0u32..12,
        asked in prop::option::of(0u64..20),
        unhealthy in any::<bool>(),
    ) -> SeenContainer {
        let mut c = container(name, attempt, state);
        if old {
            c.sandbox = OLD_SANDBOX.to_owned();
            c.container.id = ContainerId::new(format!("{OLD_SANDBOX}-{name}-{attempt}")).unwrap();
        }
        c.hash = hash.to_owned();
        c.failures = failures;
        c.stopping = asked.map(Duration::from_secs);
        c.health.failed = unhealthy;
        c
    }
}

prop_compose! {
    fn any_world()(
        containers in prop::collection::vec(any_container(), 0..6),
        sandbox in prop::option::of((any::<bool>(), any::<bool>(), any::<bool>())),
        stale in any::<bool>(),
        intent in prop_oneof![3 => Just(Intent::Run), 1 => Just(Intent::Stop), 1 => Just(Intent::Delete)],
        restart in prop_oneof![Just(RestartPolicy::Always), Just(RestartPolicy::OnFailure), Just(RestartPolicy::Never)],
        start_first in any::<bool>(),
        serving in any::<bool>(),
        good in prop::option::of(prop_oneof![Just(SANDBOX), Just(OLD_SANDBOX)]),
    ) -> (Desired, Observed) {
        let mut desired = desired();
        desired.containers.push(wish("side"));
        desired.intent = intent;
        desired.restart = restart;
        desired.update.start_first = start_first && restart == RestartPolicy::Always;
        let mut observed = Observed::default();
        let mut seen = std::collections::BTreeSet::new();
        for c in containers {
            if seen.insert(c.container.id.clone()) {
                observed.containers.push(c);
            }
        }
        observed.sandbox = sandbox.map(|(complete, attached, published)| SeenSandbox {
            complete,
            netns: None,
            attachments: if attached { vec![attachment()] } else { vec![] },
            ports: if published { vec![(port(), true)] } else { vec![] },
        });
        if stale || observed.containers.iter().any(|c| c.sandbox == OLD_SANDBOX) {
            observed.stale_sandboxes.insert(SandboxId::new(OLD_SANDBOX).unwrap());
        }
        let published = observed.sandbox.as_ref().is_some_and(|sandbox| !sandbox.ports.is_empty());
        if serving && !published && !observed.stale_sandboxes.is_empty() {
            observed.serving = Some(SandboxId::new(OLD_SANDBOX).unwrap());
        }
        observed.last_good = good.map(|id| SandboxId::new(id).unwrap());
        for name in ["main", "side"] {
            observed.images.insert(name.to_owned(), present());
        }
        (desired, observed)
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    /// Whatever is there, planning and applying comes to rest within a few rounds, in the wanted state.
    #[test]
    fn every_world_comes_to_rest((desired, mut observed) in any_world()) {
        for round in 0.. {
            prop_assert!(round < 8, "no rest: {observed:?}");
            // Time passes between the rounds: back-offs and grace periods end.
            let later = now() + Duration::from_secs(1000 * (round + 1));
            for c in &mut observed.containers {
                c.stopping = c.stopping.map(|_| Duration::from_secs(100));
                // A restarted container is healthy.
                if round > 0 && c.is_live() { c.health = Health::default(); c.stopping = None; }
            }
            let healthy = crate::workload::update::is_healthy(&desired, &observed);
            observed.healthy_for = healthy.then_some(Duration::from_secs(100));
            let plan = plan(&desired, &observed, later);
            if plan.steps.is_empty() {
                break;
            }
            apply_to_model(&desired, &mut observed, &plan);
        }
        if desired.intent == Intent::Run {
            prop_assert!(observed.stale_sandboxes.is_empty());
            for wish in &desired.containers {
                let of: Vec<_> = observed.containers.iter().filter(|c| c.name == wish.name).collect();
                prop_assert!(of.len() <= 1, "two of one: {of:?}");
                if desired.restart == RestartPolicy::Always {
                    prop_assert!(of.len() == 1 && of[0].is_live() && of[0].hash == wish.hash);
                }
            }
        } else {
            prop_assert!(observed.containers.is_empty() && observed.sandbox.is_none());
            prop_assert!(observed.stale_sandboxes.is_empty());
        }
    }

    /// With StartFirst, what the ports lead to is not stopped before they lead to something that was healthy for long
    /// enough, and they are not moved before.
    #[test]
    fn nothing_that_serves_is_stopped_before_its_successor_serves((desired, observed) in any_world()) {
        let old = |id: &ContainerId| id.as_str().starts_with(OLD_SANDBOX);
        let serves = observed.containers.iter().any(|c| c.is_live() && !c.init && c.sandbox == OLD_SANDBOX);
        if desired.intent == Intent::Run && desired.update.start_first && observed.serving.is_some() && serves {
            for step in plan(&desired, &observed, now()).steps {
                match step {
                    Step::Ask { id, .. } | Step::Kill { id } => prop_assert!(!old(&id), "{id}"),
                    Step::Teardown { id } => prop_assert!(id.as_str() != OLD_SANDBOX),
                    Step::SetPorts | Step::TakePorts { .. } => prop_assert!(false, "moved too early"),
                    _ => {}
                }
            }
        }
    }

    /// A plan never names anything that is not the workload's own.
    #[test]
    fn only_own_things_are_touched((desired, observed) in any_world()) {
        let own: std::collections::BTreeSet<String> =
            observed.containers.iter().map(|c| c.id().to_string()).collect();
        for step in plan(&desired, &observed, now()).steps {
            if let Step::Ask { id, .. } | Step::Kill { id } | Step::Remove { id } | Step::UpdateLimits { id, .. } = step {
                prop_assert!(own.contains(id.as_str()));
            }
        }
    }
}
