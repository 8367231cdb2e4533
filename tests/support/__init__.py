"""What tests are built from: real Postgres servers, real services, real clients."""
