//! Adapter for types of kube's derive macro.

/// Makes a type of kube's `CustomResource` derive usable with our clients, caches and controllers,
/// `ApiServer::resource` and the test kit. A type cannot implement both kube's traits and ours, so it is
/// wrapped: the wrapper derefs to kube's type, has the same JSON, and returns kube's
/// CustomResourceDefinition. The names must be repeated, because kube has them at run time only; a wrong one
/// leads to 404 responses.
///
/// ```text
/// #[derive(kube::CustomResource, Clone, Debug, Serialize, Deserialize, JsonSchema)]
/// #[kube(group = "example.com", version = "v1", kind = "Shop", namespaced)]
/// struct ShopSpec { shelves: i32 }
///
/// k8s_core::adopt_kube_type!(OurShop(Shop), group = "example.com", version = "v1", plural = "shops", namespaced);
/// ```
#[macro_export]
macro_rules! adopt_kube_type {
    ($ours:ident($theirs:ident), group = $group:literal, version = $version:literal, plural = $plural:literal, namespaced) => {
        $crate::adopt_kube_type!(@ $ours, $theirs, $group, $version, $plural, NamespaceResourceScope, true);
    };
    ($ours:ident($theirs:ident), group = $group:literal, version = $version:literal, plural = $plural:literal) => {
        $crate::adopt_kube_type!(@ $ours, $theirs, $group, $version, $plural, ClusterResourceScope, false);
    };
    (@ $ours:ident, $theirs:ident, $group:literal, $version:literal, $plural:literal, $scope:ident, $namespaced:literal) => {
        /// Wrapper of a kube type.
        #[derive(Clone, Debug)]
        struct $ours($theirs);

        impl ::core::ops::Deref for $ours {
            type Target = $theirs;
            fn deref(&self) -> &$theirs {
                &self.0
            }
        }

        impl ::core::ops::DerefMut for $ours {
            fn deref_mut(&mut self) -> &mut $theirs {
                &mut self.0
            }
        }

        impl $crate::custom::__derive::serde::Serialize for $ours {
            fn serialize<S>(&self, serializer: S) -> ::core::result::Result<S::Ok, S::Error>
            where
                S: $crate::custom::__derive::serde::Serializer,
            {
                $crate::custom::__derive::serde::Serialize::serialize(&self.0, serializer)
            }
        }

        impl<'de> $crate::custom::__derive::serde::Deserialize<'de> for $ours {
            fn deserialize<D>(deserializer: D) -> ::core::result::Result<Self, D::Error>
            where
                D: $crate::custom::__derive::serde::Deserializer<'de>,
            {
                $crate::custom::__derive::serde::Deserialize::deserialize(deserializer).map($ours)
            }
        }

        impl $crate::custom::__derive::schemars::JsonSchema for $ours {
            fn schema_name() -> ::std::borrow::Cow<'static, str> {
                <$theirs as $crate::custom::__derive::schemars::JsonSchema>::schema_name()
            }
            fn json_schema(
                generator: &mut $crate::custom::__derive::schemars::SchemaGenerator,
            ) -> $crate::custom::__derive::schemars::Schema {
                <$theirs as $crate::custom::__derive::schemars::JsonSchema>::json_schema(generator)
            }
        }

        impl $crate::api::Resource for $ours {
            const API_VERSION: &'static str = ::core::concat!($group, "/", $version);
            const GROUP: &'static str = $group;
            const KIND: &'static str = ::core::stringify!($theirs);
            const VERSION: &'static str = $version;
            const URL_PATH_SEGMENT: &'static str = $plural;
            type Scope = $crate::api::$scope;
        }

        impl $crate::api::Metadata for $ours {
            type Ty = $crate::api::apimachinery::pkg::apis::meta::v1::ObjectMeta;
            fn metadata(&self) -> &Self::Ty {
                &self.0.metadata
            }
            fn metadata_mut(&mut self) -> &mut Self::Ty {
                &mut self.0.metadata
            }
        }

        impl $crate::custom::CustomResource for $ours {
            const NAMESPACED: bool = $namespaced;
            fn definition() -> $crate::custom::__derive::serde_json::Value {
                // A definition is plain data, which always encodes as JSON.
                $crate::custom::__derive::serde_json::to_value(<$theirs as ::kube::CustomResourceExt>::crd())
                    .unwrap_or_default()
            }
        }
    };
}
