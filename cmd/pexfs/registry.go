package main

import "github.com/spf13/cobra"

func registryCommand() *cobra.Command { return &cobra.Command{Use: "registry"} }
func convertCommand() *cobra.Command  { return &cobra.Command{Use: "convert"} }
