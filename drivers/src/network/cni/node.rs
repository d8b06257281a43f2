//! What the node remembers of plugins' work, and the order of things around their runs.

use std::collections::BTreeSet;

use super::{CniConfig, Plugged, outcome};
use crate::ids::{NetworkKey, SandboxId};
use crate::network::book::Place;
use crate::network::linux::LinuxNetworks;
use crate::network::node::{Node, failed};
use crate::network::records::Kind;
use crate::network::{AttachSpec, Attachment, Driver, Error, NetworkSpec};

/// How far the worker got with an attachment.
pub(in crate::network) enum Attaching {
    /// It is done.
    Done(Box<Attachment>),
    /// Plugins have to run; the second is what they did before, which has to go first.
    Plugins(Box<Place>, Option<Box<Place>>),
}

impl Node {
    /// Records that plugins are about to work for a sandbox, or finds that they have.
    pub(in crate::network) fn begin_plugging(
        &mut self,
        spec: &AttachSpec,
        source: &CniConfig,
    ) -> Result<Attaching, Error> {
        let key = (spec.sandbox.clone(), spec.network.clone());
        self.leaving.remove(&key);
        let before = self.book.places.get(&key).cloned();
        if let Some(place) = before.as_ref().filter(|place| place.spec == *spec)
            && !self.doubted.contains(&key)
            && super::is_sound(place)
        {
            return Ok(Attaching::Done(Box::new(self.book.attachment(place, true))));
        }
        let mut place = self.book.find_place(spec)?;
        place.addresses.clear();
        let plugged = Plugged::read(&spec.network, source)?;
        plugged.check_wishes(spec)?;
        place.plugged = Some(plugged);
        // Until the old state is gone it stays on record: its removal needs its list and result.
        if before.is_none() {
            self.record_place(&place)?;
        }
        Ok(Attaching::Plugins(Box::new(place), before.map(Box::new)))
    }

    /// Records what plugins did.
    fn end_plugging(&mut self, mut place: Place, result: serde_json::Value) -> Result<Attachment, Error> {
        place.addresses = outcome::addresses(&result, place.spec.ifname.as_str());
        if let Some(plugged) = &mut place.plugged {
            plugged.result = Some(result);
        }
        self.record_place(&place)?;
        self.doubted.remove(&(place.spec.sandbox.clone(), place.spec.network.clone()));
        self.publish_names();
        Ok(self.book.attachment(&place, true))
    }

    fn record_place(&mut self, place: &Place) -> Result<(), Error> {
        let name = place.host_link();
        let path = self.records.path(Kind::Attachments, name.as_str());
        self.records
            .write(Kind::Attachments, name.as_str(), place)
            .map_err(failed(format!("writing {}", path.display())))?;
        self.book.places.insert((place.spec.sandbox.clone(), place.spec.network.clone()), place.clone());
        Ok(())
    }
}

impl LinuxNetworks {
    /// Runs the plugins for a place that is on record, after undoing what they did before.
    pub(in crate::network) async fn plug(&self, place: Place, before: Option<Place>) -> Result<Attachment, Error> {
        if let Some(before) = before {
            unplug(&before).await?;
            let fresh = place.clone();
            self.run(move |node| node.record_place(&fresh)).await?;
        }
        let Some(plugged) = &place.plugged else { return Err(Error::NotFound(place.spec.network.clone())) };
        match plugged.add(&place.spec).await {
            Ok(result) => self.run(move |node| node.end_plugging(place, result)).await,
            Err(error) => {
                // The first error is the one to tell; what cannot be undone stays on record and is found again.
                let (sandbox, network) = (place.spec.sandbox, place.spec.network);
                if let Err(error) = self.leave(&sandbox, Some(network)).await {
                    tracing::warn!(%sandbox, error = &error as &dyn std::error::Error, "undoing a failed attach");
                }
                Err(error)
            }
        }
    }

    /// Checks a network of plugins, lets them collect what nobody has any more, and asks about each attachment.
    /// What they say is wrong is not complete from then on.
    pub(in crate::network) async fn audit_plugins(&self, spec: &NetworkSpec) -> Result<(), Error> {
        let Driver::Cni(source) = &spec.driver else { return Ok(()) };
        let plugged = Plugged::read(&spec.key, source)?;
        let collects = plugged.check_plugins(&spec.key).await?;
        let key = spec.key.clone();
        let places: Vec<Place> = self.run(move |node| Ok(node.book.places_in(&key).cloned().collect())).await?;
        if collects {
            let valid: Vec<AttachSpec> = places.iter().map(|place| place.spec.clone()).collect();
            plugged.collect(&spec.key, &valid).await?;
        }
        let mut doubted: BTreeSet<(SandboxId, NetworkKey)> = BTreeSet::new();
        for place in &places {
            let Some(plugged) = &place.plugged else { continue };
            if let Err(error) = plugged.check(&place.spec).await {
                let sandbox = &place.spec.sandbox;
                tracing::warn!(%sandbox, error = &error as &dyn std::error::Error, "an attachment is made anew");
                doubted.insert((sandbox.clone(), spec.key.clone()));
            }
        }
        self.run(move |node| {
            node.doubted.extend(doubted);
            Ok(())
        })
        .await
    }
}

/// Undoes what plugins did for a sandbox.
pub(in crate::network) async fn unplug(place: &Place) -> Result<(), Error> {
    match &place.plugged {
        Some(plugged) => plugged.del(&place.spec).await,
        None => Ok(()),
    }
}
