//! What exists from the start: the network `default/default`, a bridge with a free subnet.

use k8s_openapi::api::core::v1::Namespace;
use kube::api::{ObjectMeta, PostParams};
use kube::{Api, Client};
use nodelet_crds::network::{Network, NetworkSpec};
use nodelet_crds::workload::DEFAULT_NETWORK;

/// The namespace of the default network, and of clients that name none.
const NAMESPACE: &str = "default";

/// Creates what is missing; what is there, changed or not, is left as it is.
pub async fn ensure(client: &Client) -> Result<(), kube::Error> {
    let namespace = Namespace {
        metadata: ObjectMeta { name: Some(NAMESPACE.to_owned()), ..Default::default() },
        ..Default::default()
    };
    create(&Api::all(client.clone()), &namespace).await?;
    let network = Network::new(DEFAULT_NETWORK, NetworkSpec::default());
    create(&Api::namespaced(client.clone(), NAMESPACE), &network).await
}

async fn create<K>(api: &Api<K>, object: &K) -> Result<(), kube::Error>
where
    K: Clone + serde::Serialize + serde::de::DeserializeOwned + std::fmt::Debug,
{
    match api.create(&PostParams::default(), object).await {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(status)) if status.code == 409 => Ok(()),
        Err(error) => Err(error),
    }
}
