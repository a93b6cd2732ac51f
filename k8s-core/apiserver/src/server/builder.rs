//! The builder of a server.

use std::sync::{
    Arc, Mutex,
    atomic::{AtomicBool, Ordering},
};

use futures::future::BoxFuture;
use ipnet::Ipv4Net;
use k8s_core::{clock::Clock, custom::CustomResource};
use k8s_store::Store;

use super::{ApiServer, BuildError, upkeep::own_client};
use crate::{
    admission::{Admit, Chain, Configuration, IntoAdmit, Parts, Selection},
    aggregate::{Aggregator, LocalApi},
    allocate::repair::Addresses,
    apiservices::ApiServices,
    audit::{Auditor, Policy, Sink},
    auth::{
        Authenticator, Authorization, AuthorizationMode, ServiceAccountTokens, TokenUses, tokens::TokenIssuer,
    },
    crd::Definitions,
    flow_status::Flows,
    limits::{Gate, Limits},
    policy_status::Policies,
    proxy::NodeConnector,
    resources::{Enablement, Resource, SharedRegistry, is_built_in},
    service_ranges::ServiceRanges,
    stages::{Audit, Authenticate, Authorize, FlowControl},
    state::{Authenticators, Observer, Pace, State},
    tls::{ClientIdentity, ClientKeys},
    token_uses,
};

/// The observers of stored objects; each kind has one at most.
static OBSERVERS: &[&dyn Observer] = &[&Definitions, &ApiServices, &Policies, &Flows, &Addresses];

/// Builds an [`ApiServer`] from its parts. Each part has a default.
pub struct Builder {
    store: Store,
    clock: Clock,
    authenticator: Authenticator,
    authorization: Vec<AuthorizationMode>,
    service_account_key: Option<Vec<u8>>,
    service_account_tokens: ServiceAccountTokens,
    service_range: Ipv4Net,
    pod_range: Option<Ipv4Net>,
    node_ports: (u16, u16),
    admission: Vec<Arc<dyn Admit>>,
    plugins: Selection,
    authenticators: Authenticators,
    authorizers: Vec<Arc<dyn Authorize>>,
    flow: Vec<Arc<dyn FlowControl>>,
    audit: Vec<Arc<dyn Audit>>,
    audit_policy: Option<Policy>,
    audit_sinks: Vec<Arc<dyn Sink>>,
    typed: Vec<Result<Vec<Arc<Resource>>, BuildError>>,
    nodes: Option<Arc<dyn NodeConnector>>,
    locals: Vec<Arc<dyn LocalApi>>,
    front_proxy: Option<ClientIdentity>,
    pace: Pace,
    warns_unenforced: bool,
    serves_ingresses: bool,
    runtime_config: Vec<String>,
    tracks_tokens: bool,
    limits: Limits,
    profiling: bool,
    metrics: k8s_metrics::Registry,
}

impl std::fmt::Debug for Builder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Builder").finish_non_exhaustive()
    }
}

impl Builder {
    pub(super) fn new(store: Store) -> Self {
        Builder {
            store,
            clock: Clock::system(),
            authenticator: Authenticator::default(),
            authorization: vec![AuthorizationMode::Rbac],
            service_account_key: None,
            service_account_tokens: ServiceAccountTokens::default(),
            service_range: Ipv4Net::new_assert(std::net::Ipv4Addr::new(10, 43, 0, 0), 16),
            pod_range: None,
            node_ports: (30000, 32767),
            admission: Vec::new(),
            plugins: Selection::default(),
            authenticators: Authenticators::default(),
            authorizers: Vec::new(),
            flow: Vec::new(),
            audit: Vec::new(),
            audit_policy: None,
            audit_sinks: Vec::new(),
            typed: Vec::new(),
            nodes: None,
            locals: Vec::new(),
            front_proxy: None,
            pace: Pace::default(),
            warns_unenforced: true,
            serves_ingresses: false,
            runtime_config: Vec::new(),
            tracks_tokens: false,
            limits: Limits::default(),
            profiling: true,
            metrics: k8s_metrics::Registry::default(),
        }
    }

    /// Clock of the server. Default: wall time.
    #[must_use]
    pub fn clock(mut self, clock: Clock) -> Self {
        self.clock = clock;
        self
    }
    /// Authenticator for certificates and tokens. Default: client certificates and service account tokens;
    /// anonymous requests are refused.
    #[must_use]
    pub fn authenticator(mut self, authenticator: Authenticator) -> Self {
        self.authenticator = authenticator;
        self
    }
    /// Authorizers, asked in this order (`--authorization-mode`). Default: RBAC. With `AlwaysAllow` among
    /// them, the authenticator's anonymous requests are refused.
    ///
    /// ```
    /// use k8s_apiserver::{ApiServer, User, auth::AuthorizationMode};
    /// use k8s_core::api::Secret;
    /// use k8s_store::Store;
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let modes = [AuthorizationMode::Node, AuthorizationMode::Rbac];
    /// let server = ApiServer::builder(Store::memory()).authorization(modes).build().await?;
    /// // No pod of this node refers to a secret.
    /// let secrets = server.client_as(User::node("n1")).namespaced::<Secret>("default");
    /// assert!(secrets.get("a").await.is_err_and(|error| error.is_forbidden()));
    /// # Ok(()) }
    /// ```
    #[must_use]
    pub fn authorization(mut self, modes: impl IntoIterator<Item = AuthorizationMode>) -> Self {
        self.authorization = modes.into_iter().collect();
        self
    }
    /// Private key that signs service account tokens: PEM, or the DER of PKCS#8; RSA, P-256 or P-384.
    /// Default: a new key, which is lost with the process.
    #[must_use]
    pub fn service_account_key(mut self, key: Vec<u8>) -> Self {
        self.service_account_key = Some(key);
        self
    }
    /// Issuers, audiences and further keys of service account tokens. Default: upstream's issuer, and the key
    /// that signs.
    ///
    /// ```
    /// use k8s_apiserver::{ApiServer, User, auth::ServiceAccountTokens};
    /// use k8s_core::client::empty_body;
    /// use k8s_store::Store;
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let tokens = ServiceAccountTokens {
    ///     issuers: vec!["https://shop.example.com".into()],
    ///     external_address: Some("shop.example.com".into()),
    ///     ..ServiceAccountTokens::default()
    /// };
    /// let server = ApiServer::builder(Store::memory()).service_account_tokens(tokens).build().await?;
    /// let request = http::Request::get("/.well-known/openid-configuration").body(empty_body())?;
    /// assert_eq!(server.service_as(User::admin()).handle(request).await.status(), 200);
    /// # Ok(()) }
    /// ```
    #[must_use]
    pub fn service_account_tokens(mut self, tokens: ServiceAccountTokens) -> Self {
        self.service_account_tokens = tokens;
        self
    }
    /// Range of cluster addresses of Services. Default: 10.43.0.0/16.
    #[must_use]
    pub fn service_range(mut self, range: Ipv4Net) -> Self {
        self.service_range = range;
        self
    }
    /// Range of pod addresses, for warnings about Services that claim one. Default: the pod ranges of the
    /// nodes.
    #[must_use]
    pub fn pod_range(mut self, range: Ipv4Net) -> Self {
        self.pod_range = Some(range);
        self
    }
    /// Range of node ports, both ends included. Default: 30000-32767.
    #[must_use]
    pub fn node_ports(mut self, first: u16, last: u16) -> Self {
        self.node_ports = (first, last);
        self
    }
    /// Adds an admission plugin after the built-in ones: an [`Admit`](crate::admission::Admit), or a closure
    /// over an [`Admission`](crate::admission::Admission) or a [`Request`](crate::admission::Request).
    #[must_use]
    pub fn admit<M>(self, admit: impl IntoAdmit<M>) -> Self {
        self.admit_shared(admit.into_admit())
    }
    /// Adds an admission plugin that several servers share.
    #[must_use]
    pub fn admit_shared(mut self, admit: Arc<dyn Admit>) -> Self {
        self.admission.push(admit);
        self
    }
    /// Turns built-in admission plugins on that are off by default, by upstream's names
    /// (`--enable-admission-plugins`). [`plugins`](crate::admission::plugins) lists those of this server.
    #[must_use]
    pub fn with_plugins<N: Into<String>>(mut self, names: impl IntoIterator<Item = N>) -> Self {
        self.plugins.on.extend(names.into_iter().map(Into::into));
        self
    }
    /// Configuration of built-in admission plugins (`--admission-control-config-file`). Default: none.
    #[must_use]
    pub fn plugin_configuration(mut self, configuration: Configuration) -> Self {
        self.plugins.configuration = configuration;
        self
    }
    /// Turns built-in admission plugins off by upstream's names (`--disable-admission-plugins`). Turning off
    /// one that this server does not have changes nothing. Default: none.
    ///
    /// ```
    /// use k8s_apiserver::{ApiServer, User};
    /// use k8s_core::api::Pod;
    /// use k8s_store::Store;
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// // Nothing makes service accounts here, and pods are admitted without one.
    /// let server = ApiServer::builder(Store::memory()).without_plugins(["ServiceAccount"]).build().await?;
    /// let spec = serde_json::json!({"containers": [{"name": "c", "image": "i"}]});
    /// let pod: Pod = serde_json::from_value(serde_json::json!({"metadata": {"name": "a"}, "spec": spec}))?;
    /// server.client_as(User::admin()).namespaced::<Pod>("default").create(&pod).await?;
    ///
    /// let wrong = ApiServer::builder(Store::memory()).without_plugins(["ServiceAcount"]).build().await;
    /// assert_eq!(wrong.unwrap_err().to_string(), "admission plugin \"ServiceAcount\" is unknown");
    /// # Ok(()) }
    /// ```
    #[must_use]
    pub fn without_plugins<N: Into<String>>(mut self, names: impl IntoIterator<Item = N>) -> Self {
        self.plugins.off.extend(names.into_iter().map(Into::into));
        self
    }
    /// Serves the custom resource of a Rust type, without a definition in the store.
    ///
    /// ```
    /// use k8s_apiserver::{ApiServer, User};
    /// use k8s_core::Resource;
    /// use k8s_store::Store;
    /// use schemars::JsonSchema;
    /// use serde::{Deserialize, Serialize};
    ///
    /// #[derive(Resource, Serialize, Deserialize, JsonSchema, Clone, Debug)]
    /// #[resource(group = "example.com", version = "v1", kind = "Shop")]
    /// #[resource(rule("self.shelves > 0", "no shelves"))]
    /// struct ShopSpec { shelves: i64 }
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let server = ApiServer::builder(Store::memory()).resource::<Shop>().build().await?;
    /// let shops = server.client_as(User::admin()).all::<Shop>();
    /// shops.create(&Shop::new("corner", ShopSpec { shelves: 3 })).await?;
    /// let empty = Shop::new("empty", ShopSpec { shelves: 0 });
    /// assert!(shops.create(&empty).await.is_err_and(|error| error.is_invalid()));
    /// # Ok(()) }
    /// ```
    #[must_use]
    pub fn resource<T: CustomResource>(mut self) -> Self {
        self.typed.push(
            crate::resources::typed::resources::<T>()
                .map_err(|invalid| BuildError::Definition { kind: invalid.kind, problems: invalid.problems }),
        );
        self
    }
    /// Adds an authenticator that is asked before the server's own, such as one for the headers of a trusted
    /// proxy. The first that returns a user or an error decides.
    #[must_use]
    pub fn authenticate_first(mut self, authenticator: impl Authenticate) -> Self {
        self.authenticators.first.push(Arc::new(authenticator));
        self
    }
    /// Adds an authenticator that is asked after the server's own and before the request counts as anonymous,
    /// such as one for an identity provider's tokens. The first that returns a user or an error decides.
    #[must_use]
    pub fn authenticate_with(mut self, authenticator: impl Authenticate) -> Self {
        self.authenticators.then.push(Arc::new(authenticator));
        self
    }
    /// Adds an authorizer, asked before those of [`authorization`](Builder::authorization) and before
    /// `system:masters` is let through.
    #[must_use]
    pub fn authorize_with(mut self, authorizer: impl Authorize) -> Self {
        self.authorizers.push(Arc::new(authorizer));
        self
    }
    /// Adds a limit on concurrent requests.
    #[must_use]
    pub fn flow_control(mut self, flow: impl FlowControl) -> Self {
        self.flow.push(Arc::new(flow));
        self
    }
    /// Adds a recorder of each request and its response code.
    #[must_use]
    pub fn audit(mut self, audit: impl Audit) -> Self {
        self.audit.push(Arc::new(audit));
        self
    }
    /// Policy of audit events (`--audit-policy-file`). Default: none, and no events.
    #[must_use]
    pub fn audit_policy(mut self, policy: Policy) -> Self {
        self.audit_policy = Some(policy);
        self
    }
    /// Adds a backend for the events that the audit policy asks for, such as a [`Log`](crate::audit::Log).
    #[must_use]
    pub fn audit_sink(mut self, sink: impl Sink) -> Self {
        self.audit_sinks.push(Arc::new(sink));
        self
    }
    /// Connector to kubelets for logs, exec, attach, port-forward and proxy. Default: none; such requests get
    /// 503.
    #[must_use]
    pub fn nodes(mut self, connector: Arc<dyn NodeConnector>) -> Self {
        self.nodes = Some(connector);
        self
    }

    /// Serves a group and version from code of this process, until an APIService gives it to another server.
    #[must_use]
    pub fn local_api(mut self, api: Arc<dyn LocalApi>) -> Self {
        self.locals.push(api);
        self
    }

    /// Client certificate presented to aggregated API servers. Default: none; they then see an anonymous
    /// request. [`ApiServer::renew_front_proxy`] replaces it.
    #[must_use]
    pub fn front_proxy(mut self, identity: ClientIdentity) -> Self {
        self.front_proxy = Some(identity);
        self
    }

    /// Intervals of background work. Default: as upstream.
    #[must_use]
    pub fn pace(mut self, pace: Pace) -> Self {
        self.pace = pace;
        self
    }

    /// Warnings about kinds and fields that are stored and not acted on. Default: on. A comparison with an
    /// upstream server turns them off.
    #[must_use]
    pub fn warn_unenforced(mut self, warns: bool) -> Self {
        self.warns_unenforced = warns;
        self
    }

    /// An Ingress controller runs beside the server, so that no warning tells of none. Default: false.
    #[must_use]
    pub fn serves_ingresses(mut self, serves: bool) -> Self {
        self.serves_ingresses = serves;
        self
    }

    /// Turns versions and resources on or off (`--runtime-config`): `api/all`, `api/ga`, `api/beta`,
    /// `api/alpha`, `GROUP/VERSION` or `GROUP/VERSION/RESOURCE`, each with `=true` or `=false`. Default:
    /// none.
    ///
    /// ```
    /// use k8s_apiserver::{ApiServer, User};
    /// use k8s_core::client::empty_body;
    /// use k8s_store::Store;
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let builder = ApiServer::builder(Store::memory()).runtime_config(["apps/v1beta1=false"]);
    /// let server = builder.build().await?;
    /// let request = http::Request::get("/apis/apps/v1beta1/deployments").body(empty_body())?;
    /// assert_eq!(server.service_as(User::admin()).handle(request).await.status(), 404);
    ///
    /// let wrong = ApiServer::builder(Store::memory()).runtime_config(["apps/v9=true"]).build().await;
    /// assert!(wrong.unwrap_err().to_string().contains("apps/v9"));
    /// # Ok(()) }
    /// ```
    #[must_use]
    pub fn runtime_config<E: Into<String>>(mut self, entries: impl IntoIterator<Item = E>) -> Self {
        self.runtime_config.extend(entries.into_iter().map(Into::into));
        self
    }

    /// Records at the start, in the ConfigMap kube-apiserver-legacy-service-account-token-tracking of
    /// kube-system, since when Secrets are labelled with the last use of their token. Without it no unused
    /// token is cleaned. Default: off; the program `hyperkube` turns it on.
    #[must_use]
    pub fn track_token_uses(mut self, tracks: bool) -> Self {
        self.tracks_tokens = tracks;
        self
    }

    /// Limits on clients over sockets. Default: as upstream.
    #[must_use]
    pub fn limits(mut self, limits: Limits) -> Self {
        self.limits = limits;
        self
    }

    /// Serves `/debug/pprof` (`--profiling`) to those who may read it. Default: true, as upstream.
    #[must_use]
    pub fn profiling(mut self, serves: bool) -> Self {
        self.profiling = serves;
        self
    }

    /// Registry of the server's metrics, to which a program adds those of its other components. `/metrics`
    /// serves all of it. Default: one of its own.
    #[must_use]
    pub fn metrics(mut self, registry: k8s_metrics::Registry) -> Self {
        self.metrics = registry;
        self
    }

    /// Builds the server and writes the bootstrap objects (namespaces, roles, priority classes, flow
    /// schemas and levels). The `kubernetes` Service is created by the `hyperkube` crate.
    ///
    /// # Errors
    /// If `service_account_key` or `front_proxy` is damaged or unsupported, an entry of `runtime_config`, a
    /// type's definition or an admission plugin's name or configuration is invalid, or the store cannot be
    /// written.
    pub fn build(self) -> BoxFuture<'static, Result<ApiServer, BuildError>> {
        // Boxed: callers' crates need not compile it again.
        Box::pin(self.assemble())
    }

    async fn assemble(mut self) -> Result<ApiServer, BuildError> {
        if self.authorization.iter().any(|mode| matches!(mode, AuthorizationMode::AlwaysAllow)) {
            self.authenticator.refuse_anonymous();
        }
        let enablement = Enablement::parse(&self.runtime_config)?;
        let key = self.service_account_key.as_deref();
        let issuer = TokenIssuer::with(key, self.service_account_tokens)?;
        let front_proxy = self.front_proxy.as_ref().map(ClientKeys::new).transpose();
        let front_proxy = front_proxy.map_err(|reason| BuildError::FrontProxy { reason })?;
        let services = ServiceRanges { addresses: self.service_range, ports: self.node_ports };
        let authorization =
            Authorization::new(self.store.clone(), self.authorizers, &self.authorization, &self.metrics);
        let authorization = Arc::new(authorization);
        self.authenticator.measure(&self.metrics);
        let parts = Parts {
            store: self.store.clone(),
            authorization: authorization.clone(),
            clock: self.clock.clone(),
            metrics: self.metrics.clone(),
        };
        let admission = Chain::new(&parts, self.admission, &self.plugins)?;
        let sinks = self.audit_sinks;
        let auditor = self
            .audit_policy
            .filter(|_| !sinks.is_empty())
            .map(|policy| Arc::new(Auditor::new(policy, sinks, self.clock.clone(), &self.metrics)));
        let (token_uses, used) = TokenUses::new();
        let server = ApiServer {
            state: Arc::new(State {
                store: self.store,
                registry: SharedRegistry::new(enablement),
                clock: self.clock,
                authenticator: self.authenticator,
                authorization,
                issuer,
                services,
                admission,
                observers: OBSERVERS,
                authenticators: self.authenticators,
                flow: self.flow,
                audit: self.audit,
                auditor,
                nodes: self.nodes,
                aggregator: Aggregator::new(self.locals),
                own: own_client,
                redefined: Arc::default(),
                front_proxy,
                pace: self.pace,
                warns_unenforced: self.warns_unenforced,
                serves_ingresses: self.serves_ingresses,
                pod_range: self.pod_range,
                gate: Arc::new(Gate::new(self.limits, &self.metrics)),
                metrics: crate::metrics::Metrics::new(self.metrics),
                token_uses,
                open_api: Mutex::default(),
                ready: AtomicBool::new(false),
                stopping: AtomicBool::new(false),
                profiling: self.profiling,
            }),
            user: None,
        };
        for made in self.typed {
            let made = made?;
            if let Some(taken) = made.iter().find(|r| is_built_in(&r.storage)) {
                let (kind, resource) = (taken.kind.clone(), taken.storage.to_string());
                return Err(BuildError::BuiltIn { kind, resource });
            }
            if let Some(name) = made.first().map(|r| format!("type/{}", r.storage)) {
                server.state.registry.define(&name, made);
            }
        }
        crate::crd::load_definitions(&server.state);
        if let Err(error) = crate::allocate::repair::claim_all(&server.state).await {
            tracing::warn!(%error, "addresses and node ports of Services are not all claimed");
        }
        let own = own_client(&server.state);
        let registry = server.state.registry.now();
        match (crate::bootstrap::run(server.store(), &registry, &own).await, server.state.store.ailment()) {
            // With a full disk the cluster is readable, and has its bootstrap objects from before.
            (Err(e), Some(_)) => tracing::warn!(error = %e, "not all bootstrap objects could be made"),
            (made, _) => made.map_err(BuildError::Bootstrap)?,
        }
        server.state.ready.store(true, Ordering::Release);
        crate::event_ttl::start(&server.state);
        crate::allocate::repair::start(&server.state);
        crate::compaction::start(&server.state);
        if self.tracks_tokens {
            token_uses::track(&server.state).await;
        }
        token_uses::start(&server.state, used);
        crate::apiservices::start(&server.state);
        super::upkeep::start(&server.state);
        Ok(server)
    }
}
