//! The flag that chooses the versions and resources of the API.

use k8s_apiserver::Builder;

/// The served part of the API.
#[derive(Clone, Debug, Default, clap::Args)]
pub(crate) struct VersionSettings {
    /// API versions and resources to turn on or off, as KEY=true|false; repeatable, or comma-separated. Keys:
    /// api/all, api/ga (v1, v2), api/beta, api/alpha, GROUP/VERSION (v1 is the core group) and
    /// GROUP/VERSION/RESOURCE. The narrowest key decides. api/legacy has no effect.
    #[arg(long, value_delimiter = ',', value_name = "KEY=BOOL")]
    runtime_config: Vec<String>,
}

impl VersionSettings {
    /// Applies the settings to a server, which refuses wrong ones when it is built.
    pub(crate) fn apply(&self, server: Builder) -> Builder {
        server.runtime_config(&self.runtime_config)
    }
}
